from phicli.cli.main import entry

entry()
