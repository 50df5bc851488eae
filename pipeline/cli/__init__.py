"""What the command `repnets` does, a module a command. The command line itself is `pipeline.cli.main`."""
