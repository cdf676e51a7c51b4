"""What a server does in each of its turns."""
