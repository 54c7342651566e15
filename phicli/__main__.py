from phicli.process import entry

entry()
