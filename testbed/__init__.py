"""What is simulated: methods and fleets in virtual time, faults, the paper's experiments; and the demo."""
