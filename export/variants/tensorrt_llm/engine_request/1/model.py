"""Triton model `engine_request`: mixed prompt and options → the tensors of TensorRT-LLM's backend."""

from functools import partial

from refrag.machine.collector import collector_paused
from refrag.serving.triton import input_names, reply_to_each, settings_from, version_folder


class TritonPythonModel:
    def initialize(self, args):
        with collector_paused():
            # Imported here, since Triton loads this file once more to complete its config.
            from refrag.serving.decoder_request import RequestDefaults
            from refrag.serving.engine_request import EngineRequests

            self.inputs = input_names(args)
            self.service = EngineRequests(version_folder(args) / "checkpoint", settings_from(args, RequestDefaults))

    def execute(self, requests):
        return [response for request in requests for response in self.reply(request)]

    def reply(self, request):
        run = partial(self.service.run, request.request_id(), request.correlation_id())
        return reply_to_each([request], run, self.inputs)
