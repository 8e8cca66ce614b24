"""Dashboard, alerts and scalers name what the server exports. In: their files, rendered manifests, the
text of a server's /metrics. Out: cases: expressions are PromQL, and every metric and label in them exists.
"""

import json
import re

import chart
import promql_parser
import yaml

# What Prometheus itself adds to what it scrapes.
SCRAPED = {"instance", "job", "namespace", "pod", "service", "le"}
SUFFIXES = r"_(bucket|sum|count)$"
# What names no metric of ours may be called.
METRIC = re.compile(r"\b(?:vllm|weft):[a-z0-9_]+|\bweft_[a-z0-9_]+")


def check(report, renders, metrics):
    """`metrics`: the text of /metrics of a server that has answered requests."""
    exported = parse(metrics or "")
    report.case(f"the server exports metrics: {len(exported)}", [] if exported else ["none"])
    dashboard = json.loads((chart.DEPLOY / "grafana" / "weft.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    for panel in panels:
        problems = [p for target in panel["targets"] for p in unknown(target["expr"], exported)]
        report.case(f"dashboard: {panel['title']}", problems)
    report.case("dashboard: ids are distinct, panels do not overlap", misplaced(dashboard["panels"]))
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(
                r"label_values\((\S+), (\w+)\)", variable["query"]["query"]).groups()
            report.case(f"dashboard: ${variable['name']}", unknown(f'{metric}{{{label}=""}}', exported))
    rules = yaml.safe_load((chart.DEPLOY / "prometheus" / "rules.yaml").read_text())
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        report.case(f"alert: {rule['alert']}", unknown(rule["expr"], exported))
    for name, manifests in renders.items():
        for item in manifests:
            if item["kind"] == "ScaledObject":
                for trigger in item["spec"]["triggers"]:
                    report.case(f"{name}: its scaler's query",
                                unknown(trigger["metadata"]["query"], exported))
            if item["kind"] == "PrometheusRule":
                same = item["spec"] == rules
                report.case(f"{name}: has the alerts", [] if same else ["others than in rules.yaml"])
            if item["kind"] == "ConfigMap" and "weft.json" in item["data"]:
                same = json.loads(item["data"]["weft.json"]) == dashboard
                report.case(f"{name}: has the dashboard", [] if same else ["another than weft.json"])
            if item["kind"] == "ConfigMap" and "weft.yaml" in item["data"]:
                report.case(f"{name}: the picker's plugins are declared",
                            undeclared(yaml.safe_load(item["data"]["weft.yaml"])))


def parse(text):
    """Label names by metric, and by each sample's name of a histogram."""
    exported = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            exported.setdefault(line.split()[2], set())
        elif line and not line.startswith("#"):
            name, labels = re.match(r"([^{ ]+)(?:\{(.*)\})? ", line).groups()
            found = set(re.findall(r'(\w+)="', labels or ""))
            exported.setdefault(name, set()).update(found)
    return exported


def unknown(expression, exported):
    """Metrics and labels of an expression that the server does not have, or what is wrong with it."""
    expression = expression.replace("$__rate_interval", "5m").replace("$instance", ".*")
    try:
        selectors = list(selectors_of(promql_parser.parse(expression)))
    except ValueError as error:
        return [f"{expression}: {error}"]
    problems = [] if selectors else [f"{expression}: names no metric"]
    named = {name for name, _ in selectors}
    # The walk below must not have missed any.
    problems += [f"{name} was not looked at" for name in set(METRIC.findall(expression)) - named]
    for name, labels in selectors:
        # A histogram is exported under its three names, one that is only declared under one.
        if name not in exported and re.sub(SUFFIXES, "", name) not in exported:
            problems.append(f"the server does not export {name}")
            continue
        if strange := labels - exported.get(name, set()) - SCRAPED:
            problems.append(f"{name} has no label {', '.join(sorted(strange))}")
    grouped = [word.strip() for group in re.findall(r"\bby ?\(([^)]*)\)", expression)
               for word in group.split(",")]
    all_labels = set().union(SCRAPED, *(exported.get(name, set()) for name in named))
    problems += [f"no metric of {expression} has the label {word}"
                 for word in grouped if word and word not in all_labels]
    return problems


def selectors_of(node):
    """`(metric, labels)` of each selector below a node of PromQL's syntax tree."""
    if isinstance(node, promql_parser.VectorSelector):
        matchers = node.matchers.matchers
        yield node.name, {matcher.name for matcher in matchers if matcher.name != "__name__"}
        return
    for field in ("expr", "lhs", "rhs", "param", "vector_selector"):
        below = getattr(node, field, None)
        if below is not None:
            yield from selectors_of(below)
    for below in getattr(node, "args", None) or []:
        yield from selectors_of(below)


def misplaced(panels):
    if len({panel["id"] for panel in panels}) != len(panels):
        yield "two have the same id"
    taken = {}
    for panel in panels:
        at = panel["gridPos"]
        if at["x"] + at["w"] > 24:
            yield f"{panel['title']} is wider than the page"
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                if (x, y) in taken:
                    yield f"{panel['title']} lies on {taken[x, y]}"
                    return
                taken[x, y] = panel["title"]


def undeclared(config):
    declared = {plugin["type"] for plugin in config["plugins"]}
    for profile in config["schedulingProfiles"]:
        for plugin in profile["plugins"]:
            if plugin["pluginRef"] not in declared:
                yield f"{plugin['pluginRef']} is not declared"
            if not plugin["weight"] >= 0:
                yield f"{plugin['pluginRef']} has the weight {plugin['weight']}"
