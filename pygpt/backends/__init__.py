"""One interface, and numpy and the native libraries behind it."""
