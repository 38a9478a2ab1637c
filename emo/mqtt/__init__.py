"""The port over MQTT: paho's client, its connection, TLS."""
