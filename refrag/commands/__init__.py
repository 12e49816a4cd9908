"""Commands that the library adds to `refrag`: a module each, of the form that refrag_client.cli.commands describes."""
