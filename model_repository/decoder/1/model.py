"""Triton model `decoder`: mixed prompt → streamed answer. Decoupled: execute() queues and returns at once."""

from refrag.serving.decoder import DecoderService, DecoderSettings
from refrag.serving.triton import settings_from, version_folder


class TritonPythonModel:
    def initialize(self, args):
        settings = settings_from(args, DecoderSettings)
        self.service = DecoderService(version_folder(args) / "checkpoint", settings)

    def execute(self, requests):
        for request in requests:
            self.service.accept(request)

    def finalize(self):
        self.service.close()
