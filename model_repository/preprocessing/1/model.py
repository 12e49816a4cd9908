"""Triton model `preprocessing`: text → chunks and token ids."""

from refrag.machine.collector import collector_paused
from refrag.serving.request_parameters import ENSEMBLE_INPUTS
from refrag.serving.triton import check_environment, reply_to_each, settings_from, version_folder


class TritonPythonModel:
    def initialize(self, args):
        with collector_paused():
            # Imported here, since Triton loads this file once more to complete its config.
            from refrag.serving.preprocessing import Preprocessing, PreprocessingSettings

            # Here alone: all models have the same environment.
            check_environment()
            settings = settings_from(args, PreprocessingSettings)
            self.preprocessing = Preprocessing(version_folder(args) / "checkpoint", settings)

    def execute(self, requests):
        return reply_to_each(requests, self.preprocessing.run, ENSEMBLE_INPUTS)

    def finalize(self):
        self.preprocessing.close()
