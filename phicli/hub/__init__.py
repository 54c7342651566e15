"""What a user calls a model, and the folder that holds it."""
