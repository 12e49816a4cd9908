"""Triton model `preprocessing`: text → chunks and token ids."""

from refrag.serving.preprocessing import Preprocessing, PreprocessingSettings
from refrag.serving.triton import reply_to_each, settings_from, version_folder


class TritonPythonModel:
    def initialize(self, args):
        settings = settings_from(args, PreprocessingSettings)
        self.preprocessing = Preprocessing(version_folder(args) / "checkpoint", settings)

    def execute(self, requests):
        return reply_to_each(requests, self.preprocessing.run)

    def finalize(self):
        self.preprocessing.close()
