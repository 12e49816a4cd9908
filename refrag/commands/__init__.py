"""What the library adds to the command `refrag`: a module per command, as refrag_client.cli.commands describes them."""
