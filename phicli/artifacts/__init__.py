"""Files as such: reading a stranger's, and writing where strangers can write too."""
