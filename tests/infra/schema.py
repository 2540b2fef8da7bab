"""The AWS provider's real schema, out of the CDK bindings for it (PyPI cdktf-cdktf-provider-aws).

Terraform's registry can't be reached from everywhere, but HashiCorp generated these bindings from the provider's own schema:
each resource's JavaScript names every attribute and block with its type, and tells required from optional (no `reset...()`)
and from computed (a getter alone). From that the schema is put together again, for the resources that are asked for.
"""

import re
import tarfile

SCALARS = {"string": "string", "number": "number", "boolean": "bool", "any": "dynamic"}
GETTERS = {"String": "string", "Number": "number", "Boolean": "bool", "List": ["list", "string"], "NumberList": ["list", "number"],
           "StringMap": ["map", "string"], "NumberMap": ["map", "number"], "BooleanMap": ["map", "bool"]}

ENTRY = re.compile(r'^ +(\w+): \{\n +value: (.*),\n +isBlock: (true|false),\n +type: "(\w+)",\n +storageClassType: "(\w+)",\n', re.M)
HCL_FUNCTION = re.compile(r"^function (\w+)ToHclTerraform\(struct\) \{\n(.*?)^\}", re.M | re.S)
RESOURCE_ATTRIBUTES = re.compile(r"^    synthesizeHclAttributes\(\) \{\n(.*?)^    \}", re.M | re.S)
CLASS = re.compile(r"^class (\w+) extends cdktf\.(\w+) \{\n(.*?)^\}", re.M | re.S)
CAMEL_NAME = re.compile(r"\((?:struct\.|this\._)(\w+?)(?:\.internalValue)?\)$")
GETTER = re.compile(r"^    get \w+\(\) \{\n +return (?:cdktf\.Fn\.tolist\()?this\.get(\w+)Attribute\('(\w+)'\)", re.M)
MEMBER = re.compile(r'^ +this\._\w+ = new (\w+)\(this, "(\w+)"(?:, (true|false))?\)', re.M)
VERSION = re.compile(r"providerVersion: '([\d.]+)'")


def lower_first(name):
    return name[0].lower() + name[1:]


class Binding:
    """One resource's JavaScript."""

    def __init__(self, text):
        self.structs = {name: ENTRY.findall(body) for name, body in HCL_FUNCTION.findall(text)}
        self.classes = {name: body for name, _, body in CLASS.findall(text)}
        self.top = next((body for _, parent, body in CLASS.findall(text) if parent in
                         ("TerraformResource", "TerraformDataSource", "TerraformProvider")), None)
        self.version = VERSION.search(text).group(1)

    def schema(self):
        entries = RESOURCE_ATTRIBUTES.search(self.top)
        return self.block(ENTRY.findall(entries.group(1)) if entries else [], self.top, is_top=True)

    def block(self, entries, owner, is_top=False):
        """Attributes and nested blocks, of `entries` as configuration may have them and the class `owner` with its getters."""
        attributes, blocks = {}, {}
        members = {name: class_name for class_name, name, _ in MEMBER.findall(owner)}
        for name, value, is_block, collection, storage in entries:
            camel = CAMEL_NAME.search(value).group(1)
            required = f" reset{camel[0].upper()}{camel[1:]}()" not in owner
            if is_block == "true":
                blocks[name] = self.nested(storage, collection, members.get(name, ""), required)
            else:
                flags = {"required": True} if required else {"optional": True}
                attributes[name] = {"type": attribute_type(collection, storage), **flags}
        if is_top and "id" in attributes:
            attributes["id"] = {"type": "string", "optional": True, "computed": True}
        for kind, name in GETTER.findall(owner):
            if name not in attributes and name not in blocks:
                attributes[name] = {"type": GETTERS.get(kind, "dynamic"), "computed": True}
        for name, class_name in members.items():
            if name not in attributes and name not in blocks:
                attributes[name] = {"type": self.computed_type(class_name), "computed": True}
        return {"attributes": attributes, "blocks": blocks}

    def nested(self, storage, collection, member_class, required):
        many = member_class.endswith("List")
        struct = storage.removesuffix("List") if collection in ("list", "set") else storage
        owner = self.classes.get(f"{struct}OutputReference", "")
        block = self.block(self.structs.get(lower_first(struct), []), owner)
        nesting = "single" if collection == "struct" else collection
        return {"nesting": nesting, "min_items": int(required), "max_items": 0 if many or nesting == "single" else 1, "block": block}

    def computed_type(self, class_name):
        struct = class_name.removesuffix("List").removesuffix("OutputReference")
        owner = self.classes.get(f"{struct}OutputReference", "")
        members = {name: GETTERS.get(kind, "dynamic") for kind, name in GETTER.findall(owner)}
        members |= {name: self.computed_type(inner) for inner, name, _ in MEMBER.findall(owner)}
        return ["list", ["object", members]]


def attribute_type(collection, storage):
    if storage in SCALARS:
        return SCALARS[storage]
    found = re.fullmatch(r"(string|number|boolean)(List|Set|Map)", storage)
    if not found:
        return "dynamic"
    return ["map" if found.group(2) == "Map" else collection, SCALARS[found.group(1)]]


def folder(kind, name):
    """`aws_s3_bucket` -> `s3-bucket`, of a data source `data-aws-s3-bucket`"""
    words = name.removeprefix("aws_").replace("_", "-")
    return f"data-aws-{words}" if kind == "data" else words


def read(bindings, used):
    """The schema of the provider itself and of `used`, pairs of `resource` or `data` and a type's name. Those that the provider
    doesn't have are missing in the answer."""
    wanted = {f"package/lib/{folder(kind, name)}/index.js": (kind, name) for kind, name in used}
    wanted["package/lib/provider/index.js"] = ("provider", "aws")
    schema = {"provider": {}, "resource": {}, "data": {}, "version": None}
    with tarfile.open(bindings, "r|gz") as archive:
        for member in archive:
            if member.name not in wanted:
                continue
            kind, name = wanted[member.name]
            binding = Binding(archive.extractfile(member).read().decode().split("//# sourceMappingURL")[0])
            schema[kind][name] = binding.schema()
            schema["version"] = binding.version
    return schema


def used_in(texts):
    """Pairs of kind and type of the resources that Terraform files use."""
    return {(kind, name) for text in texts for kind, name in re.findall(r'\b(resource|data)\s+"(aws_\w+)"', text)}
