"""What a trainer's updates take at real size: seconds, memory, calls, bit for bit."""
