from phicli.cli import entry

entry()
