"""Triton model `passage_store`: fills and maintains collections of passages."""

from refrag.machine.collector import collector_paused
from refrag.serving.triton import input_names, reply_to_each, settings_from, version_folder


class TritonPythonModel:
    def initialize(self, args):
        with collector_paused():
            # Imported here, since Triton loads this file once more to complete its config.
            from refrag.serving.passage_store import PassageStore, PassageStoreSettings

            self.inputs = input_names(args)
            settings = settings_from(args, PassageStoreSettings)
            self.passage_store = PassageStore(version_folder(args) / "checkpoint", settings)

    def execute(self, requests):
        return reply_to_each(requests, self.passage_store.run, self.inputs)

    def finalize(self):
        self.passage_store.close()
