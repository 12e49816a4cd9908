"""Triton model `expansion_policy`: chunk vectors → the mixed prompt's layout."""

from refrag.machine.collector import collector_paused
from refrag.serving.triton import input_names, reply_to_each, settings_from, version_folder


class TritonPythonModel:
    def initialize(self, args):
        with collector_paused():
            # Imported here, since Triton loads this file once more to complete its config.
            from refrag.serving.expansion import Expansion, ExpansionSettings

            self.inputs = input_names(args)
            settings = settings_from(args, ExpansionSettings)
            self.expansion = Expansion(version_folder(args) / "checkpoint", settings)

    def execute(self, requests):
        return reply_to_each(requests, self.expansion.run, self.inputs)

    def finalize(self):
        self.expansion.close()
