"""What the chart tells weft, told to weft. In: rendered manifests, the program, a base. Out: cases: every
flag exists, servers start with the arguments of their pods, answer what probes and routes ask, and end in
time; and the metrics that they export.
"""

import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import chart

# Longer than the demo's base needs to load on any machine, and than a server without requests to end.
SECONDS = 60


def check_arguments(report, renders, weft):
    """Every flag of every container is in the help of its command."""
    known = {}
    for name, manifests in renders.items():
        problems = []
        for _, spec in chart.pod_specs(manifests):
            for container in spec["containers"] + spec.get("initContainers", []):
                command, flags = split(container["args"])
                if command not in known:
                    known[command] = flags_of(weft, command)
                missing = flags - known[command]
                problems += [f"weft {' '.join(command)} has no {flag}" for flag in sorted(missing)]
        report.case(f"{name}: weft has every flag of its pods", problems)


def split(args):
    """The command, and the flags that it is given."""
    command = tuple(args[:1] if args[0] == "serve" else args[:2])
    flags = {arg.split("=", 1)[0] for arg in args if arg.startswith("-")}
    return command, flags


def flags_of(weft, command):
    run = subprocess.run([weft, *command, "--help"], capture_output=True, text=True, check=True)
    return set(re.findall(r"^ +(?:-\w, )?(--[a-z-]+)", run.stdout, re.M))


def check_pods(report, renders, weft, model):
    """Starts each pod's server that this machine can be. Returns the last one's metrics, as text."""
    metrics = None
    for name, manifests in renders.items():
        spec = chart.server_pod(manifests)
        args = spec["containers"][0]["args"]
        if "--device=cuda" in args:
            run = subprocess.run([weft, *args], capture_output=True, text=True, env=variables(spec))
            # 2 is what a wrong flag or value gives; without this model, and a GPU, it ends with 1.
            report.case(f"{name}: its arguments are understood (not served: no GPU here)",
                        [run.stderr] if run.returncode != 1 else [])
            continue
        problems, metrics = serve(manifests, spec, weft, model)
        report.case(f"{name}: serves with its arguments, and answers its probes and routes", problems)
    return metrics


def serve(manifests, spec, weft, model):
    """What goes wrong from start to end of a pod's server, and its metrics."""
    problems, metrics = [], None
    container = spec["containers"][0]
    with tempfile.TemporaryDirectory() as cache, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        args = [here(arg, model, port) for arg in container["args"]]
        args = [arg for arg in args if arg is not None]
        free.close()
        log = Path(cache) / "log"
        with log.open("w") as out:
            server = subprocess.Popen(
                [weft, *args], stdout=out, stderr=out, env=variables(spec, cache), cwd=cache)
        try:
            url = f"http://127.0.0.1:{port}"
            path = container["startupProbe"]["httpGet"]["path"]
            if not becomes_ready(server, url + path):
                return [f"it did not start: {log.read_text()[-2000:]}"], None
            metrics = get(url + "/metrics")[1]
            for probe in ("readinessProbe", "livenessProbe"):
                status = get(url + container[probe]["httpGet"]["path"])[0]
                problems += [f"{probe}: status {status}"] * (status != 200)
            problems += unlisted(args, url)
            for path in routed(manifests):
                # A route of POST says 405 to a GET; 404 is a route that there is not.
                status = get(url + path)[0]
                problems += [f"the HTTPRoute sends {path}: {status}"] * (status not in (200, 405))
            for _, pod in chart.pod_specs(manifests):
                if pod["containers"][0]["args"][:2] == ["adapter", "ls"]:
                    run = subprocess.run(
                        [weft, "adapter", "ls", f"--url={url}"], capture_output=True, text=True)
                    problems += [f"helm test: {run.stderr}"] * (run.returncode != 0)
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                status = server.wait(SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                status = f"killed after {SECONDS} s"
        problems += [f"after SIGTERM: {status}: {log.read_text()[-2000:]}"] * (status != 0)
    return problems, metrics


def here(arg, model, port):
    """The argument on this machine; none where it needs what is not here."""
    flag, _, value = arg.partition("=")
    if arg.startswith("/models/"):
        return str(model)
    if flag == "--host":
        return "--host=127.0.0.1"
    if flag == "--port":
        return f"--port={port}"
    if flag == "--adapter" and "://" in value:
        return None
    # The value sets name adapters of the demo.
    return arg.replace("=/adapters", f"={chart.DEPLOY.parent}/demo/adapters")


def unlisted(args, url):
    """Names that were given to the base and to adapters, and that the server does not know."""
    known = {model["id"] for model in json.loads(get(url + "/v1/models")[1])["data"]}
    for arg in args:
        flag, _, value = arg.partition("=")
        name = value.split("=", 1)[0]
        if flag in ("--served-model-name", "--adapter", "--pin") and name not in known:
            yield f"{arg}, but /v1/models has no {name}"


def variables(spec, cache="/nowhere"):
    """The container's environment, with the cache where this machine has room."""
    env = {"PATH": os.environ["PATH"]}
    for variable in spec["containers"][0]["env"]:
        env[variable["name"]] = variable["value"].replace("/cache", cache)
    return env


def becomes_ready(server, url):
    deadline = time.monotonic() + SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        if get(url)[0] == 200:
            return True
        time.sleep(0.1)
    return False


def get(url):
    """Status and body; status 0 while nobody listens."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""
    except OSError:
        return 0, ""


def routed(manifests):
    """Paths that HTTPRoutes send to the server."""
    return [match["path"]["value"] for item in manifests if item["kind"] == "HTTPRoute"
            for rule in item["spec"]["rules"] for match in rule["matches"]]
