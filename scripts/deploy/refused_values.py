"""Mistakes in values that must not reach a cluster. In: the chart. Out: a case for each kind of
mistake: that it is refused with words that say which value.
"""

import copy

import chart
import helm_python

DIGEST = "sha256:short"

# The mistake, the values that are changed (dots lead into objects, DELETE takes away), what is said.
DELETE = object()
MISTAKES = [
    ("no image", {"image": DELETE}, "repository"),
    ("no model", {"model.path": DELETE}, "path"),
    ("no volume for the model", {"model.volume": {}}, "volume"),
    ("a relative path", {"model.path": "base.gguf"}, "path"),
    ("a model outside its volume", {"model.path": "/data/base.gguf"}, "not below model.mountPath"),
    ("an unknown key", {"replicas": 3}, "replicas"),
    ("an unknown key inside", {"server.maxNumSeq": 3}, "maxNumSeq"),
    ("an unknown key of an adapter",
     {"adapters.load": [{"name": "a", "source": "/a", "rank": 8}]}, "rank"),
    ("a word for a number", {"server.maxNumSeqs": "many"}, "maxNumSeqs"),
    ("a negative number", {"replicaCount": -1}, "replicaCount"),
    ("a word for a switch", {"adapters.allowRuntime": "yes"}, "allowRuntime"),
    ("an unknown choice", {"server.kvCacheDtype": "fp4"}, "kvCacheDtype"),
    ("a size as Kubernetes writes it", {"server.memory": "8Gi"}, "memory"),
    ("a port that is none", {"server.port": 70000}, "port"),
    ("a digest that is none", {"image.digest": DIGEST}, "digest"),
    ("a name that is two", {"adapters.load": [{"name": "a=b", "source": "/a"}]}, "name"),
    ("a source that is none", {"adapters.load": [{"name": "a", "source": "ftp://a"}]}, "source"),
    ("a resolver without a source", {"adapters.resolvers": ["acme/*"]}, "resolvers"),
    ("everybody may load everything", {"adapters.allowRuntime": True}, "sourceAllow"),
    ("a source that the network policy hides",
     {"adapters.load": [{"name": "a", "source": "hf://acme/a"}]}, "networkPolicy.allowHttps"),
    ("a claim without a name", {"cache.type": "existingClaim"}, "existingClaim"),
    ("less time to end than requests get",
     {"shutdown.preStopSeconds": 40}, "terminationGracePeriodSeconds"),
    ("KEDA without Prometheus",
     {"autoscaling.enabled": True, "autoscaling.type": "queue"}, "prometheusAddress"),
    ("fewer replicas at most than at least",
     {"autoscaling.minReplicas": 5}, "autoscaling.maxReplicas"),
    ("a pool without a picker", {"inferencePool.enabled": True}, "service"),
    ("a route without a gateway", {"httpRoute.enabled": True}, "parentRefs"),
    ("a variable without a name", {"extraEnv": [{"value": "x"}]}, "extraEnv"),
    ("API keys, which the server does not have", {"server.apiKeys": {"secret": "keys"}}, "apiKeys"),
]


def check(report):
    """The plain values pass, and each mistake in them is refused."""
    plain = chart.values_of(chart.CHART / "ci" / "minimal.yaml")
    chart.render(plain)
    for mistake, changes, said in MISTAKES:
        values = copy.deepcopy(plain)
        for path, value in changes.items():
            change(values, path.split("."), value)
        report.case(f"refused: {mistake}", accepted(values, said))


def change(values, keys, value):
    for key in keys[:-1]:
        values = values.setdefault(key, {})
    if value is DELETE:
        del values[keys[-1]]
    else:
        values[keys[-1]] = value


def accepted(values, said):
    """What is wrong with the refusal, if anything."""
    try:
        chart.render(values)
    except helm_python.HelmError as error:
        return [] if said in str(error) else [f"the refusal does not say `{said}`: {error}"]
    return ["it was rendered"]
