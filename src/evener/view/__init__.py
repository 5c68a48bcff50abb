"""What a run shows people: plain lines, the live view, what is printed and waited for."""
