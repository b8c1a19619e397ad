"""What server, adapters and clients share: errors, constraints, channels, serving, tensors, data order, schedules."""
