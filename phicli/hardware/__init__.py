"""What the machine has: cores, memory, the driver, devices."""
