"""provider.py SCHEMA.json: a Terraform provider that has the AWS provider's schema (see schema.py) and nothing behind it.

`terraform validate` and `terraform test` with `mock_provider` ask for no more. It runs until it is killed and prints what belongs into
TF_REATTACH_PROVIDERS: one process for all of Terraform's runs, instead of one for each of their steps.
"""

import json
import sys
from types import SimpleNamespace

import tf.provider
from tf.gen import tfplugin_pb2 as protocol
from tf.gen import tfplugin_pb2_grpc as service
from tf.runner import run_provider

Schema = protocol.Schema
NESTING = {"single": Schema.NestedBlock.SINGLE, "list": Schema.NestedBlock.LIST, "set": Schema.NestedBlock.SET}


def block(described):
    attributes = [
        Schema.Attribute(name=name, type=json.dumps(a["type"]).encode(), required=a.get("required", False),
                         optional=a.get("optional", False), computed=a.get("computed", False))
        for name, a in described["attributes"].items()
    ]
    blocks = [
        Schema.NestedBlock(type_name=name, block=block(b["block"]), nesting=NESTING[b["nesting"]],
                           min_items=b["min_items"], max_items=b["max_items"])
        for name, b in described["blocks"].items()
    ]
    return Schema.Block(attributes=attributes, block_types=blocks)


class SchemaOnly(service.ProviderServicer):
    """Everything else answers UNIMPLEMENTED."""

    def __init__(self, _provider):
        with open(sys.argv[1], encoding="utf-8") as file:
            self.schema = json.load(file)

    def of_kind(self, kind):
        return {name: Schema(block=block(described)) for name, described in self.schema[kind].items()}

    def GetMetadata(self, request, context):
        return protocol.GetMetadata.Response(
            resources=[protocol.GetMetadata.ResourceMetadata(type_name=name) for name in self.schema["resource"]],
            data_sources=[protocol.GetMetadata.DataSourceMetadata(type_name=name) for name in self.schema["data"]],
        )

    def GetProviderSchema(self, request, context):
        return protocol.GetProviderSchema.Response(
            provider=self.of_kind("provider")["aws"],
            resource_schemas=self.of_kind("resource"),
            data_source_schemas=self.of_kind("data"),
            server_capabilities=protocol.ServerCapabilities(get_provider_schema_optional=True),
        )

    def ValidateProviderConfig(self, request, context):
        return protocol.ValidateProviderConfig.Response()

    def ValidateResourceConfig(self, request, context):
        return protocol.ValidateResourceConfig.Response()

    def ValidateDataResourceConfig(self, request, context):
        return protocol.ValidateDataResourceConfig.Response()

    def ConfigureProvider(self, request, context):
        return protocol.ConfigureProvider.Response()

    def StopProvider(self, request, context):
        return protocol.StopProvider.Response()


# The package brings the handshake and the transport; its own servicer knows only resources written in Python.
tf.provider.ProviderServicer = SchemaOnly
run_provider(SimpleNamespace(full_name=lambda: "registry.terraform.io/hashicorp/aws"), ["provider.py", "--dev"])
