"""Terraform with the AWS provider's real schema, and without any provider, registry or account (see schema.py, provider.py)."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import schema

HERE = Path(__file__).resolve().parent
INFRA = HERE.parents[1] / "infra"


class Terraform:
    """The program, and the process that plays the provider."""

    def __init__(self, cache, folder):
        """`cache` is where scripts/test-setup put things."""
        self.program, self.bindings, self.folder = f"{cache}/infra/bin/terraform", f"{cache}/infra/aws-provider.tgz", Path(folder)

    def __enter__(self):
        files = INFRA.glob("terraform/**/*.tf")
        described = schema.read(self.bindings, schema.used_in(file.read_text() for file in files))
        path = self.folder / "schema.json"
        path.write_text(json.dumps(described))
        self.version = described["version"]
        # The package keeps a certificate in the home directory.
        self.provider = subprocess.Popen([sys.executable, "-u", HERE / "provider.py", path], stdout=subprocess.PIPE, text=True,
                                         env={**os.environ, "HOME": str(self.folder)})
        announced = next(line for line in self.provider.stdout if "TF_REATTACH_PROVIDERS=" in line)
        self.reattach = announced.split("=", 1)[1].strip().strip("'")
        return self

    def __exit__(self, *_):
        self.provider.kill()
        self.provider.wait()

    def run(self, module, *arguments):
        """Exit code and output."""
        environment = {**os.environ, "TF_REATTACH_PROVIDERS": self.reattach, "TF_CLI_CONFIG_FILE": os.devnull, "CHECKPOINT_DISABLE": "1",
                       "TF_IN_AUTOMATION": "1"}
        done = subprocess.run([self.program, f"-chdir={module}", *arguments], capture_output=True, text=True, env=environment,
                              check=False, timeout=300)
        return done.returncode, done.stdout + done.stderr

    def copy(self, name="infra"):
        """A copy of infra/ to work on: Terraform leaves files where it runs."""
        copy = self.folder / name
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(INFRA, copy)
        return copy

    def states(self, module, file):
        """The resources' planned values in each run of a test file, by run and address."""
        code, said = self.run(module, "test", "-json", "-verbose", f"-filter={file}")
        if code != 0:
            raise AssertionError(said)
        messages = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        return {
            message["@testrun"]: {resource["address"]: resource["change"]["after"] for resource in message["test_plan"]["resource_changes"]}
            for message in messages if message.get("type") == "test_plan"
        }
