from phicli.cli.entry import entry

entry()
