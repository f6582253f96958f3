"""Kubernetes: the manifests of `examples/kubernetes` are valid; their pods train, end and return as documented."""

import re
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import jsonschema
import kubeflow_trainer_api.models as api
import pytest
import yaml

from minetorch_launch import exit_codes
from minetorch_launch.errors import UsageError
from tests.launch.pods import Cluster, Manifest, needs_root
from tests.launch.test_nodes import COUNTS, Node

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "examples/kubernetes").glob("*.yaml"))
MODELS = {
    "Service": api.IoK8sApiCoreV1Service,
    "Job": api.IoK8sApiBatchV1Job,
    "TrainingRuntime": api.TrainerV1alpha1TrainingRuntime,
    "TrainJob": api.TrainerV1alpha1TrainJob,
}
STOPPED_BY_SIGTERM = 143


def load(name):
    """The documents of a file, by kind."""
    text = (ROOT / "examples/kubernetes" / f"{name}.yaml").read_text(encoding="utf-8")
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


# The files.


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_page_shows_the_file(file):
    page = (ROOT / "docs/kubernetes.md").read_text(encoding="utf-8")
    assert f"```yaml\n{file.read_text(encoding='utf-8')}```" in page


@pytest.mark.parametrize("name", ["job", "trainjob"])
def test_a_manifest_is_valid(name):
    for kind, document in load(name).items():
        assert_known(MODELS[kind], document)


def test_the_manifest_of_a_pytorchjob_is_valid():
    replicas = {
        "type": "object",
        "properties": {
            "replicas": {"type": "integer"},
            "restartPolicy": {"enum": ["Always", "OnFailure", "Never", "ExitCode"]},
            "template": {"type": "object"},
        },
        "additionalProperties": False,
    }
    schema = {
        "properties": {
            "runPolicy": {"properties": {"backoffLimit": {"type": "integer"}}, "additionalProperties": False},
            "pytorchReplicaSpecs": {
                "properties": {"Master": replicas, "Worker": replicas},
                "additionalProperties": False,
            },
        },
        "additionalProperties": False,
    }
    spec = load("pytorchjob")["PyTorchJob"]["spec"]
    jsonschema.validate(spec, schema)
    for replica in spec["pytorchReplicaSpecs"].values():
        assert_known(api.IoK8sApiCoreV1PodTemplateSpec, replica["template"])


def assert_known(model, document):
    """The model takes every field of the document; it would drop an unknown one."""
    assert model.from_dict(document).to_dict() == document


@pytest.mark.parametrize("name", ["job", "pytorchjob", "trainjob"])
def test_the_kubelet_waits_longer_than_the_launcher_takes_to_stop(name):
    text = (ROOT / "examples/kubernetes" / f"{name}.yaml").read_text(encoding="utf-8")
    [seconds] = re.findall(r"terminationGracePeriodSeconds: (\d+)", text)
    [grace] = re.findall(r"--grace=(\d+)", text)
    assert int(seconds) >= int(grace) + 15


@pytest.mark.parametrize("name", ["job", "trainjob"])
def test_exit_codes_have_the_actions_that_are_documented(name):
    policy = failure_policy(name)
    actions = {code: action_for(code, policy) for code in (1, exit_codes.EXIT_HUNG, 137)}
    assert set(actions.values()) == {"Count"}
    assert action_for(exit_codes.EXIT_STOPPED_EARLY, policy) == "Ignore"
    assert action_for(STOPPED_BY_SIGTERM, policy) == "Ignore"
    assert action_for(UsageError.exit_code, policy) == "FailJob"


def failure_policy(name):
    documents = load(name)
    if name == "job":
        return documents["Job"]["spec"]["podFailurePolicy"]
    return replicated_job(documents)["podFailurePolicy"]


def replicated_job(documents):
    [job] = documents["TrainingRuntime"]["spec"]["template"]["spec"]["replicatedJobs"]
    return job["template"]["spec"]


def action_for(code, policy):
    """What the Job controller does with a pod that ends with this exit code: the first rule that fits."""
    rules = [rule for rule in policy["rules"] if code in rule.get("onExitCodes", {}).get("values", ())]
    return rules[0]["action"] if rules else "Count"


# The pods that the controllers make of them. What each controller adds is in docs/kubernetes.md.


def manifests_of_job():
    documents = load("job")
    spec, name = documents["Job"]["spec"], documents["Job"]["metadata"]["name"]
    assert spec["completionMode"] == "Indexed"
    pod = spec["template"]["spec"]
    assert pod["subdomain"] == documents["Service"]["metadata"]["name"]
    [container] = pod["containers"]
    return [
        Manifest(
            f"{name}-{i}", f"{name}-{i}.{pod['subdomain']}", container["command"], {"JOB_COMPLETION_INDEX": str(i)}
        )
        for i in range(spec["completions"])
    ]


def manifests_of_pytorchjob():
    job = load("pytorchjob")["PyTorchJob"]
    name, replicas = job["metadata"]["name"], job["spec"]["pytorchReplicaSpecs"]
    pods = [(kind, i) for kind in ("Master", "Worker") for i in range(replicas[kind]["replicas"])]
    manifests = []
    for rank, (kind, i) in enumerate(pods):
        [container] = replicas[kind]["template"]["spec"]["containers"]
        env = {
            **{"PYTHONUNBUFFERED": "1", "WORLD_SIZE": str(len(pods)), "RANK": str(rank)},
            **{"MASTER_ADDR": f"{name}-master-0", "MASTER_PORT": "23456"},
            **{"PET_MASTER_ADDR": f"{name}-master-0", "PET_MASTER_PORT": "23456"},
            **{"PET_NODE_RANK": str(rank), "PET_NNODES": str(len(pods)), "PET_NPROC_PER_NODE": "auto"},
        }
        hostname = f"{name}-{kind.lower()}-{i}"
        manifests.append(Manifest(hostname, hostname, container["command"], env))
    return manifests


def manifests_of_trainjob():
    documents = load("trainjob")
    name, trainer = documents["TrainJob"]["metadata"]["name"], documents["TrainJob"]["spec"]["trainer"]
    return [
        Manifest(
            f"{name}-node-0-{i}",
            f"{name}-node-0-{i}.{name}",
            trainer["command"],
            {
                "JOB_COMPLETION_INDEX": str(i),
                **{"PET_NNODES": str(trainer["numNodes"]), "PET_NPROC_PER_NODE": "auto", "PET_NODE_RANK": str(i)},
                **{"PET_MASTER_ADDR": f"{name}-node-0-0.{name}", "PET_MASTER_PORT": "29500"},
            },
        )
        for i in range(trainer["numNodes"])
    ]


@pytest.fixture
def cluster(tmp_path):
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.close()


@pytest.fixture
def start_pod(launches, cluster):
    """Starts a pod of a manifest, whose lines can be waited for."""
    started = []

    def start(manifest, **options):
        pod = cluster.start(launches, manifest, **options)
        started.append(Node(pod.process))
        return pod, started[-1]

    yield start
    for node in started:
        if node.process.poll() is None:
            node.process.kill()
        node.end()


def write_script(launches, text, *argv):
    """Write `train.py`, which finds these words in its `sys.argv`."""
    launches.script(f"import sys\nsys.argv[1:] = {[str(word) for word in argv]!r}\n{textwrap.dedent(text)}", "train.py")


WAYS = {"job": manifests_of_job, "pytorchjob": manifests_of_pytorchjob, "trainjob": manifests_of_trainjob}


@pytest.mark.slow
@needs_root
@pytest.mark.parametrize("way", WAYS)
def test_two_pods_train(launches, start_pod, way):
    write_script(launches, COUNTS, 5, -1)
    nodes = [start_pod(manifest)[1] for manifest in WAYS[way]()]
    assert [node.end() for node in nodes] == [0, 0], [node.text for node in nodes]
    for rank, node in enumerate(nodes):
        assert re.search(rf"rank \d of \d on node {rank}, local 0", node.text), node.text
    assert not launches.processes()


@pytest.mark.slow
@needs_root
@pytest.mark.parametrize(("way", "lost"), [("job", 0), ("job", 1), ("pytorchjob", 0)])
def test_a_pod_that_is_lost_comes_back_at_another_address(launches, cluster, start_pod, way, lost):
    write_script(launches, COUNTS, 10**6, -1)
    manifests = WAYS[way]()
    pods, nodes = zip(*(start_pod(manifest) for manifest in manifests), strict=True)
    for node in nodes:
        node.wait_for("going with")
    pods[lost].vanish()
    other = nodes[1 - lost]
    other.wait_for("is lost")
    pod, back = start_pod(manifests[lost], is_known=False)
    assert pod.address != pods[lost].address
    time.sleep(3)  # the DNS still has the address of the pod before
    cluster.publish(pod)
    back.wait_for("going with")
    other.wait_for("start 2")
    pod.terminate()
    assert (back.end(), other.end()) == (STOPPED_BY_SIGTERM,) * 2, back.text + other.text
    assert not launches.processes()


TRAINS = """
    import time
    import torch
    from torch.utils.data import DataLoader, TensorDataset
    import minetorch

    def step(trainer, data):
        time.sleep(0.1)
        print("in training", flush=True)

    model = torch.nn.Linear(2, 1)
    minetorch.Trainer(
        "runs",
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        DataLoader(TensorDataset(torch.ones(160, 2)), batch_size=4),
        lambda trainer, data: trainer.model(data[0]).mean(),
        hooks={"after_train_iteration_end": step},
        drawer=None,
        max_epochs=4,
    ).train()
"""


@pytest.mark.slow
@needs_root
def test_a_pod_that_is_deleted_ends_all_with_75_and_new_pods_finish_the_run(launches, start_pod):
    write_script(launches, TRAINS)
    manifests = manifests_of_job()
    pods, nodes = zip(*(start_pod(manifest) for manifest in manifests), strict=True)
    nodes[0].wait_for("in training", count=3)
    pods[1].terminate()
    for node in nodes:
        assert node.end() == exit_codes.EXIT_STOPPED_EARLY, node.text
        assert action_for(node.process.returncode, failure_policy("job")) == "Ignore"
    nodes = [start_pod(manifest)[1] for manifest in manifests]
    assert [node.end() for node in nodes] == [0, 0], [node.text for node in nodes]
    assert "Resumed from" in nodes[0].text
    assert "no step lost" in nodes[0].text


STAYS = """
    import signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("ready", flush=True)
    time.sleep(1000)
"""


@pytest.mark.slow
@needs_root
def test_workers_that_do_not_stop_are_killed_after_the_grace(launches, start_pod):
    write_script(launches, STAYS)
    manifests = [
        replace(manifest, command=["--grace=2" if "--grace=" in word else word for word in manifest.command])
        for manifest in manifests_of_job()
    ]
    pods, nodes = zip(*(start_pod(manifest) for manifest in manifests), strict=True)
    for node in nodes:
        node.wait_for("ready")
    began = time.monotonic()
    pods[0].terminate()
    assert [node.end() for node in nodes] == [STOPPED_BY_SIGTERM] * 2, [node.text for node in nodes]
    assert 2 <= time.monotonic() - began < 2 + 15
    assert not launches.processes()


@needs_root
def test_a_wrong_option_ends_a_pod_with_the_code_that_fails_the_job(start_pod):
    first, *_ = manifests_of_job()
    _, node = start_pod(replace(first, env={"JOB_COMPLETION_INDEX": "2"}))
    assert node.end() == UsageError.exit_code
    assert "--node-rank 2 is not one of 2 nodes" in node.text


@pytest.mark.slow
@needs_root
def test_the_first_pod_may_be_told_that_the_master_is_localhost(launches, start_pod):
    """As the operator before version 1.4 does it, which sets no variable of torchrun's."""
    write_script(launches, COUNTS, 5, -1)
    options = ["--nnodes=$(WORLD_SIZE)", "--node-rank=$(RANK)"]
    options += ["--master-addr=$(MASTER_ADDR)", "--master-port=$(MASTER_PORT)"]
    nodes = []
    for manifest in manifests_of_pytorchjob():
        env = {name: value for name, value in manifest.env.items() if not name.startswith("PET_")}
        if env["RANK"] == "0":
            env["MASTER_ADDR"] = "localhost"
        program, *rest = manifest.command
        nodes.append(start_pod(replace(manifest, command=[program, *options, *rest], env=env))[1])
    assert [node.end() for node in nodes] == [0, 0], [node.text for node in nodes]
    assert "rank 0 of 2 on node 0" in nodes[0].text
    assert "rank 1 of 2 on node 1" in nodes[1].text
