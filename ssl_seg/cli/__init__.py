"""The command line. Heavy libraries are imported inside the commands, so that ``--help`` is quick."""
