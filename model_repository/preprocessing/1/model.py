"""Triton model `preprocessing`: text → chunks and token ids."""

from refrag.serving.triton import reply_to_each, settings_from, version_folder


class TritonPythonModel:
    def initialize(self, args):
        # Imported here, since Triton loads this file once more to complete its config.
        from refrag.serving.preprocessing import Preprocessing, PreprocessingSettings

        settings = settings_from(args, PreprocessingSettings)
        self.preprocessing = Preprocessing(version_folder(args) / "checkpoint", settings)

    def execute(self, requests):
        return reply_to_each(requests, self.preprocessing.run)

    def finalize(self):
        self.preprocessing.close()
