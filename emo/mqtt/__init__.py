"""The port over MQTT: client.py connects and comes back, inflight.py sends again, channel.py joins them; TLS."""
