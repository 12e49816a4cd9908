"""Triton model `chunk_store`: fills and maintains the store of chunk vectors."""

from refrag.machine.collector import collector_paused
from refrag.serving.triton import input_names, reply_to_each, settings_from, version_folder


class TritonPythonModel:
    def initialize(self, args):
        with collector_paused():
            # Imported here, since Triton loads this file once more to complete its config.
            from refrag.serving.chunk_store import ChunkStore, ChunkStoreSettings

            self.inputs = input_names(args)
            settings = settings_from(args, ChunkStoreSettings)
            self.chunk_store = ChunkStore(version_folder(args) / "checkpoint", settings)

    def execute(self, requests):
        return reply_to_each(requests, self.chunk_store.run, self.inputs)

    def finalize(self):
        self.chunk_store.close()
