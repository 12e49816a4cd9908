"""Triton model `postprocessing`: an engine's tokens → text. Decoupled: an engine's response may give none of ours."""

from refrag.serving.triton import input_names, settings_from, version_folder


class TritonPythonModel:
    def initialize(self, args):
        # Imported here, since Triton loads this file once more to complete its config.
        from refrag.serving.postprocessing import Postprocessing, PostprocessingSettings

        settings = settings_from(args, PostprocessingSettings)
        self.service = Postprocessing(version_folder(args) / "checkpoint", settings, input_names(args))

    def execute(self, requests):
        for request in requests:
            self.service.accept(request)

    def finalize(self):
        self.service.close()
