"""Running one step: what it would make and from what, and an Olive pass by itself."""
