"""The command line: one small module a command, and all that a person sees at the terminal."""
