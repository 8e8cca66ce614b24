"""The chart as manifests. In: deploy/helm/weft and its value sets. Out: rendered manifests, and cases:
that Helm's linter, Kubernetes' schemas and the house's rules for pods have nothing to say.
"""

import json
import subprocess
from pathlib import Path

import helm_python
import jsonschema
import kubernetes_validate
import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CHART = DEPLOY / "helm" / "weft"
VALUE_SETS = sorted((CHART / "ci").glob("*.yaml"))
# The oldest that Chart.yaml allows, and the newest that the package knows.
KUBERNETES = ["1.30", kubernetes_validate.latest_version()]
RELEASE, NAMESPACE = "prod", "llm"


def values_of(path):
    """The values of a file, as Helm reads them."""
    return helm_python.values_from_yaml(path.read_text())


def render(values):
    """All manifests, as objects."""
    with helm_python.Chart.load(CHART) as loaded:
        texts = loaded.render(values, name=RELEASE, namespace=NAMESPACE, is_install=True)
    manifests = [text for path, text in texts.items() if path.endswith(".yaml")]
    return [item for text in manifests for item in yaml.safe_load_all(text) if item]


def pod_specs(manifests):
    """`(name, spec)` of each pod and pod template."""
    for item in manifests:
        if item["kind"] == "Pod":
            yield item["metadata"]["name"], item["spec"]
        elif item["kind"] in ("Deployment", "StatefulSet"):
            yield item["metadata"]["name"], item["spec"]["template"]["spec"]


def server_pod(manifests):
    """The spec of the server's pod."""
    return next(spec for _, spec in pod_specs(manifests) if spec["containers"][0].get("ports"))


def check_dockerfiles(report, hadolint):
    """hadolint, on every Dockerfile."""
    for path in sorted((DEPLOY / "docker").glob("*Dockerfile")):
        run = subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True)
        report.case(f"{path.name}: hadolint", (run.stdout + run.stderr).splitlines())


def check_renders(report):
    """Renders every value set. Returns the manifests by its name."""
    report.case("there are eight value sets", [] if len(VALUE_SETS) >= 8 else [f"{len(VALUE_SETS)}"])
    report.case("values: what is documented is what there is", undocumented())
    renders, untouched = {}, custom_kinds()
    for path in VALUE_SETS:
        name, values = path.stem, values_of(path)
        lint = helm_python.lint(CHART, values, strict=True)
        # 1 is information: that the chart has no icon.
        said = [m["error"] for m in lint["messages"] if m["severity"] > 1] + lint["errors"]
        report.case(f"{name}: helm lint --strict", said)
        renders[name] = manifests = render(values)
        kinds = ", ".join(item["kind"] for item in manifests)
        report.case(f"{name}: valid in Kubernetes {' and '.join(KUBERNETES)}: {kinds}",
                    invalid(manifests, untouched))
        report.case(f"{name}: pods are confined, and selectors find them", careless(manifests))
    report.case("each custom resource that is known was rendered",
                [f"no value set renders {kind}" for kind in sorted(untouched)])
    return renders


def custom_kinds():
    """Resources that Kubernetes does not define, and what is checked of them."""
    text = (DEPLOY / "helm" / "custom-resources.json").read_text()
    return {kind: schema for kind, schema in json.loads(text).items() if "/" in kind}


def invalid(manifests, untouched):
    """A sentence for each violation of a schema. Takes kinds that occur from `untouched`."""
    known = custom_kinds()
    seen = set()
    for item in manifests:
        kind = f"{item['apiVersion']}/{item['kind']}"
        name = item["metadata"]["name"]
        if (kind, name) in seen:
            yield f"two are {kind} {name}"
        seen.add((kind, name))
        if kind in known:
            untouched.pop(kind, None)
            for error in jsonschema.Draft7Validator(known[kind]).iter_errors(item["spec"]):
                yield f"{kind} {name}: {error.json_path}: {error.message}"
            continue
        for version in KUBERNETES:
            try:
                kubernetes_validate.validate(item, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"{kind} {name} in {version}: {error.json_path}: {error.message}"
            except kubernetes_validate.SchemaNotFoundError as error:
                yield f"{kind} {name} in {version}: {error.message}"


def careless(manifests):
    """What a pod must not have, and selectors that select nothing."""
    for name, spec in pod_specs(manifests):
        if spec.get("enableServiceLinks") is not False:
            yield f"{name}: a Service named weft would set WEFT_PORT"
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{name}: has a token of the API server"
        if spec["securityContext"].get("runAsNonRoot") is not True:
            yield f"{name}: may run as root"
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        for container in spec["containers"] + spec.get("initContainers", []):
            context = container["securityContext"]
            if context.get("allowPrivilegeEscalation") is not False:
                yield f"{name}: {container['name']} may gain privileges"
            if context.get("capabilities", {}).get("drop") != ["ALL"]:
                yield f"{name}: {container['name']} has capabilities"
            claims = {item["metadata"]["name"] for workload in manifests
                      for item in workload.get("spec", {}).get("volumeClaimTemplates", [])}
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes | claims:
                    yield f"{name}: {container['name']} mounts {mount['name']}, which is no volume"
    labels = next(item["spec"]["template"]["metadata"]["labels"] for item in manifests
                  if item["kind"] in ("Deployment", "StatefulSet"))
    for item in manifests:
        selector = item.get("spec", {}).get("selector") or item.get("spec", {}).get("podSelector")
        if not selector or item["kind"] == "ServiceMonitor":
            continue
        wanted = selector.get("matchLabels", selector)
        if not wanted.items() <= labels.items():
            yield f"{item['kind']} {item['metadata']['name']} selects none of the pods: {wanted}"
    services = [item["metadata"]["labels"] for item in manifests if item["kind"] == "Service"]
    for item in manifests:
        if item["kind"] == "ServiceMonitor":
            wanted = item["spec"]["selector"]["matchLabels"].items()
            found = sum(wanted <= labels.items() for labels in services)
            if found != 1:
                yield f"the ServiceMonitor selects {found} services, not one"


def undocumented():
    """Values without a sentence in the schema or a default in values.yaml, and the reverse."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    del schema["properties"]["global"]

    def compare(schema, values, path):
        for key, part in schema.get("properties", {}).items():
            if not part.get("description"):
                yield f"{path}{key} has no description in values.schema.json"
            if key not in values:
                yield f"{path}{key} has no default in values.yaml"
            elif isinstance(values[key], dict):
                yield from compare(part, values[key], f"{path}{key}.")
            if part.get("type") == "object" and "properties" in part and \
                    part.get("additionalProperties") is not False:
                yield f"{path}{key} takes any key"

    return list(compare(schema, defaults, ""))
