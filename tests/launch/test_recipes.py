"""The launch lines of widely used projects, with ``minetorch-launch`` where they have ``torchrun``.

Each line keeps its options and variables; only numbers of nodes, processes and ports, and the arguments of the scripts
are cut down. The workers check what the script of the project relies on, in a few lines of our own.
"""

import re
import socket
import sys
import textwrap
from typing import NamedTuple

import pytest

# What most scripts do first and last. The pause lets gloo's threads finish, without which torch may hang at the end.
COMMON = """
    import argparse, os, sys, time
    import torch
    import torch.distributed as dist

    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    world, local_world = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])

    def join(**options):
        dist.init_process_group("gloo", **options)
        total = torch.ones(1)
        dist.all_reduce(total)
        assert (total.item(), dist.get_world_size(), dist.get_rank()) == (world, world, rank)

    def done():
        if dist.is_initialized():
            time.sleep(0.2)
            dist.destroy_process_group()
        open(f"done.{rank}", "w").close()
"""

# srun of a job of two nodes: it runs the command once for each node.
SRUN = """\
    #!/bin/bash
    case "$*" in *"hostname --ip-address") echo 127.0.0.1; exit;; esac
    export SLURM_STEP_ID=0 SLURM_STEP_NODELIST=node[0-1] SLURM_STEP_TASKS_PER_NODE='1(x2)' SLURM_LOCALID=0
    for node in 0 1; do
        SLURMD_NODENAME=node$node SLURM_NODEID=$node SLURM_PROCID=$node "$@" &
        tasks="$tasks $!"
    done
    for task in $tasks; do wait $task || code=$?; done
    exit $code
"""
SCONTROL = """\
    #!/bin/bash
    case "$*" in "show hostnames "*) printf 'node0\\nnode1\\n';; esac
"""
SLURM_JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[0-1]", "SLURM_NNODES": "2", "SLURM_NTASKS": "2"}


class Recipe(NamedTuple):
    """A launch line, and the script that it starts."""

    name: str
    line: str
    """A shell script. It finds a free port in PORT and, where `nodes` is 2, the number of its node in NODE."""

    worker: str
    file: str = "train.py"
    workers: int = 2
    nodes: int = 1
    slow: bool = False

    def param(self):
        return pytest.param(self, id=self.name, marks=[pytest.mark.slow] if self.slow or self.nodes > 1 else [])


RECIPES = [
    Recipe(
        # karpathy/nanoGPT: README.md, and train.py for what it reads
        "nanogpt",
        "minetorch-launch --standalone --nproc_per_node=2 train.py config/train_gpt2.py",
        """
            assert int(os.environ.get("RANK", -1)) != -1
            join()
            assert 5 * 8 % world == 0
            assert sys.argv == ["train.py", "config/train_gpt2.py"]
            assert local_rank == rank
        """,
    ),
    Recipe(
        # karpathy/nanochat: speedrun.sh and scripts/base_train.py; argparse of torchrun takes the two dashes away
        "nanochat",
        """
            export OMP_NUM_THREADS=1
            NPROC_PER_NODE=2 WANDB_RUN=dummy
            minetorch-launch --standalone --nproc_per_node=$NPROC_PER_NODE -m scripts.base_train -- --depth=20 \
                --target-param-data-ratio=20 --run=$WANDB_RUN
        """,
        """
            parser = argparse.ArgumentParser()
            parser.add_argument("--run", type=str)
            parser.add_argument("--depth", type=int)
            parser.add_argument("--target-param-data-ratio", type=float)
            args = parser.parse_args()
            assert (args.run, args.depth, args.target_param_data_ratio) == ("dummy", 20, 20.0)
            assert torch.get_num_threads() == 1
            join()
        """,
        "scripts/base_train.py",
    ),
    Recipe(
        # NVIDIA/Megatron-LM: examples/gpt3/train_gpt3_175b_distributed.sh
        "megatron",
        """
            export CUDA_DEVICE_MAX_CONNECTIONS=1
            GPUS_PER_NODE=2
            MASTER_ADDR=localhost
            MASTER_PORT=$PORT
            NUM_NODES=1
            NODE_RANK=0
            WORLD_SIZE=$(($GPUS_PER_NODE*$NUM_NODES))
            DISTRIBUTED_ARGS=(
                --nproc_per_node $GPUS_PER_NODE
                --nnodes $NUM_NODES
                --master_addr $MASTER_ADDR
                --master_port $MASTER_PORT
            )
            MODEL_ARGS=(--num-layers 96 --fp16 --lr 6.0e-5)
            minetorch-launch ${DISTRIBUTED_ARGS[@]} pretrain_gpt.py ${MODEL_ARGS[@]} --tensor-model-parallel-size 2
        """,
        """
            assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
            assert os.environ["MASTER_PORT"] == os.environ["PORT"]
            join(world_size=world, rank=rank)
            tensor_parallel = dist.new_group(list(range(2)))
            total = torch.ones(1)
            dist.all_reduce(total, group=tensor_parallel)
            assert total.item() == 2
            assert sys.argv[1:] == "--num-layers 96 --fp16 --lr 6.0e-5 --tensor-model-parallel-size 2".split()
        """,
        "pretrain_gpt.py",
    ),
    Recipe(
        # huggingface/accelerate: examples/README.md
        "accelerate",
        "minetorch-launch --nproc_per_node 2 ./nlp_example.py",
        """
            from accelerate import PartialState

            state = PartialState(cpu=True)
            assert (state.num_processes, state.process_index, state.local_process_index) == (world, rank, local_rank)
            with state.split_between_processes(["a", "b"]) as mine:
                assert mine == ["ab"[rank]]
            state.wait_for_everyone()
        """,
        "nlp_example.py",
        slow=True,
    ),
    Recipe(
        # huggingface/transformers: examples/pytorch/README.md (there as torch.distributed.launch, whose --local_rank
        # its TrainingArguments no longer read)
        "transformers",
        """
            minetorch-launch \
                --nproc_per_node 2 pytorch/text-classification/run_glue.py \
                --model_name_or_path bert-large-uncased-whole-word-masking \
                --task_name mnli \
                --do_train \
                --max_seq_length 128 \
                --learning_rate 2e-5 \
                --output_dir /tmp/mnli_output/
        """,
        """
            parser = argparse.ArgumentParser()
            parser.add_argument("--local_rank", type=int, default=-1)
            args, rest = parser.parse_known_args()
            assert args.local_rank == -1 and int(os.environ.get("LOCAL_RANK", -1)) == local_rank
            assert rest[:4] == ["--model_name_or_path", "bert-large-uncased-whole-word-masking", "--task_name", "mnli"]
            assert rest[-1] == "/tmp/mnli_output/" and sys.path[0].endswith("pytorch/text-classification")
            join()
        """,
        "pytorch/text-classification/run_glue.py",
    ),
    Recipe(
        # pytorch/vision: CONTRIBUTING_MODELS.md, and references/classification/utils.py for what it reads
        "torchvision",
        "cd references/classification && minetorch-launch --nproc_per_node=2 train.py --model resnet18",
        """
            import builtins

            join(init_method="env://", world_size=world, rank=rank)
            builtin_print = builtins.print
            builtins.print = lambda *args, **kwargs: builtin_print(*args, **kwargs) if rank == 0 else None
            print("Creating model")
            dist.barrier()
            os.chdir("../..")
        """,
        "references/classification/train.py",
    ),
    Recipe(
        # huggingface/pytorch-image-models: distributed_train.sh
        "timm",
        """
            set -- 2 /data/imagenet --model seresnet34 --experiment 'a b'
            NUM_PROC=$1
            shift
            minetorch-launch --nproc_per_node=$NUM_PROC train.py "$@"
        """,
        """
            assert sys.argv[1:] == ["/data/imagenet", "--model", "seresnet34", "--experiment", "a b"]
            join(init_method="env://")
        """,
    ),
    Recipe(
        # open-mmlab/mmdetection: tools/dist_train.sh and tools/train.py (there as torch.distributed.launch)
        "openmmlab",
        """
            set -- configs/rtmdet.py 2 --amp
            CONFIG=$1
            GPUS=$2
            NNODES=${NNODES:-1}
            NODE_RANK=${NODE_RANK:-0}
            MASTER_ADDR=${MASTER_ADDR:-"127.0.0.1"}
            PYTHONPATH="$(dirname tools/dist_train.sh)/..":$PYTHONPATH \
            minetorch-launch \
                --nnodes=$NNODES \
                --node_rank=$NODE_RANK \
                --master_addr=$MASTER_ADDR \
                --nproc_per_node=$GPUS \
                --master_port=$PORT \
                $(dirname tools/dist_train.sh)/train.py \
                $CONFIG \
                --launcher pytorch ${@:3}
        """,
        """
            parser = argparse.ArgumentParser()
            parser.add_argument("config")
            parser.add_argument("--amp", action="store_true")
            parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
            parser.add_argument("--local_rank", "--local-rank", type=int, default=0)
            args = parser.parse_args()
            assert (args.config, args.amp, args.launcher) == ("configs/rtmdet.py", True, "pytorch")
            assert "LOCAL_RANK" in os.environ
            assert os.environ["PYTHONPATH"].startswith("tools/..")
            join()
        """,
        "tools/train.py",
    ),
    Recipe(
        # ultralytics/yolov5: train.py and docs.ultralytics.com/yolov5/tutorials/multi-gpu-training (there as
        # python -m torch.distributed.run, and with port 1)
        "yolov5",
        """
            python -m minetorch_launch --nproc_per_node 2 --master_port $PORT train.py --batch 64 --data coco.yaml \
                --weights yolov5s.pt --device 0,1
        """,
        """
            assert sys.argv[-2:] == ["--device", "0,1"]
            assert 64 % world == 0 and os.environ["MASTER_PORT"] == os.environ["PORT"]
            join()
            if local_rank not in (-1, 0):  # torch_distributed_zero_first: rank 0 prepares the data, the others wait
                dist.barrier()
            if local_rank == 0:
                dist.barrier()
        """,
    ),
    Recipe(
        # pytorch/torchtune: torchtune/_cli/run.py, whose `tune run` takes the options of torchrun
        "torchtune",
        """
            minetorch-launch --nproc_per_node 2 recipes/full_finetune_distributed.py \
                --config llama2/7B_full_finetune_distributed model.lora_rank=16
        """,
        """
            from torch.distributed.elastic.multiprocessing.errors import record

            @record
            def main():
                assert dist.is_torchelastic_launched()
                join()

            main()
        """,
        "recipes/full_finetune_distributed.py",
    ),
    Recipe(
        # volcengine/verl: examples/sft/gsm8k/run_qwen_05_peft.sh
        "verl",
        """
            set -x
            nproc_per_node=2
            minetorch-launch --standalone --nnodes=1 --nproc_per_node=$nproc_per_node \
                -m verl.trainer.fsdp_sft_trainer \
                data.train_files=$HOME/data/gsm8k/train.parquet \
                optim.lr=1e-4 \
                data.prompt_dict_keys=['question'] \
                +data.response_dict_keys=['answer']
        """,
        """
            assert sys.argv[1].endswith("/data/gsm8k/train.parquet")
            assert sys.argv[3:] == ["data.prompt_dict_keys=[question]", "+data.response_dict_keys=[answer]"]
            join()
        """,
        "verl/trainer/fsdp_sft_trainer.py",
    ),
    Recipe(
        # mlfoundations/open_clip: README.md
        "open_clip",
        """
            cd src
            minetorch-launch --nproc_per_node 2 -m training.main \
                --train-data '/data/cc12m/cc12m-train-{0000..2175}.tar' \
                --dataset-type webdataset \
                --workers 4
        """,
        """
            assert sys.argv[2] == "/data/cc12m/cc12m-train-{0000..2175}.tar"
            join(init_method="env://")
            os.chdir("..")
        """,
        "src/training/main.py",
    ),
    Recipe(
        # meta-llama/llama3: README.md
        "llama3",
        """
            minetorch-launch --nproc_per_node 1 example_chat_completion.py \
                --ckpt_dir Meta-Llama-3-8B-Instruct/ \
                --tokenizer_path Meta-Llama-3-8B-Instruct/tokenizer.model \
                --max_seq_len 512 --max_batch_size 6
        """,
        """
            assert len(sys.argv) == 9 and world == 1
            join()
        """,
        "example_chat_completion.py",
        workers=1,
    ),
    Recipe(
        # pytorch/torchx: dist.ddp in torchx/components/dist.py (in some versions as python -m torch.distributed.run)
        "torchx",
        """
            bash -c "minetorch-launch --rdzv_backend c10d --rdzv_endpoint localhost:0 --rdzv_id main-a1b2 --nnodes 1 \
                --nproc_per_node 2 --tee 3 --role '' main.py --epochs 1" 2>notes
        """,
        """
            assert (os.environ["ROLE_NAME"], os.environ["TORCHELASTIC_RUN_ID"]) == ("", "main-a1b2")
            assert sys.argv[1:] == ["--epochs", "1"]
            join()
        """,
        "main.py",
    ),
    Recipe(
        # determined-ai/determined: harness/determined/launch/torch_distributed.py
        "determined",
        """
            python -m minetorch_launch --nnodes 1 --nproc_per_node 2 --node_rank 0 --max_restarts 0 \
                --master_addr localhost --master_port $PORT --module determined.exec.pid_client /tmp/pid_server-1 -- \
                python3 -m determined.launch.wrap_rank RANK -- train.py
        """,
        """
            wrapped = ["python3", "-m", "determined.launch.wrap_rank", "RANK", "--", "train.py"]
            assert sys.argv[1:] == ["/tmp/pid_server-1", "--", *wrapped]
            join()
        """,
        "determined/exec/pid_client.py",
    ),
    Recipe(
        # pytorch/torchtitan: multinode_trainer.slurm
        "torchtitan-slurm",
        """
            nodes=( $( scontrol show hostnames $SLURM_JOB_NODELIST ) )
            nodes_array=($nodes)
            head_node=${nodes_array[0]}
            head_node_ip=$(srun --nodes=1 --ntasks=1 -w "$head_node" hostname --ip-address)
            export LOGLEVEL=INFO FI_PROVIDER=efa NCCL_DEBUG=WARN PYTHONFAULTHANDLER=1 CUDA_LAUNCH_BLOCKING=0
            srun minetorch-launch --nnodes 2 --nproc_per_node 2 --rdzv_id 101 --rdzv_backend c10d \
                --rdzv_endpoint "$head_node_ip:$PORT" -m torchtitan.train --module llama3 --config llama3_debugmodel
        """,
        """
            assert (world, local_world) == (4, 2)
            assert os.environ["TORCHELASTIC_RUN_ID"] == "101"
            assert rank == 2 * int(os.environ["GROUP_RANK"]) + local_rank
            assert os.environ["GROUP_RANK"] == os.environ["SLURM_NODEID"]
            join()
        """,
        "torchtitan/train.py",
        workers=4,
        slow=True,
    ),
    Recipe(
        # pytorch/examples: distributed/ddp-tutorial-series/slurm/sbatch_run.sh and multigpu_torchrun.py
        "pytorch-tutorial",
        """
            nodes=( $( scontrol show hostnames $SLURM_JOB_NODELIST ) )
            nodes_array=($nodes)
            head_node=${nodes_array[0]}
            head_node_ip=$(srun --nodes=1 --ntasks=1 -w "$head_node" hostname --ip-address)
            export LOGLEVEL=INFO
            srun minetorch-launch \
            --nnodes 2 \
            --nproc_per_node 1 \
            --rdzv_id $RANDOM \
            --rdzv_backend c10d \
            --rdzv_endpoint $head_node_ip:$PORT \
            multinode_torchrun.py 50 10
        """,
        """
            from torch.nn.parallel import DistributedDataParallel

            parser = argparse.ArgumentParser()
            parser.add_argument("total_epochs", type=int)
            parser.add_argument("save_every", type=int)
            args = parser.parse_args()
            assert (args.total_epochs, args.save_every) == (50, 10)
            assert (world, local_world, local_rank) == (2, 1, 0)
            join()
            DistributedDataParallel(torch.nn.Linear(20, 1))(torch.ones(1, 20)).sum().backward()
        """,
        "multinode_torchrun.py",
        slow=True,
    ),
    Recipe(
        # karpathy/nanoGPT: README.md
        "nanogpt-two-nodes",
        """
            NCCL_IB_DISABLE=1 minetorch-launch --nproc_per_node=2 --nnodes=2 --node_rank=$NODE \
                --master_addr=127.0.0.1 --master_port=$PORT train.py
        """,
        """
            assert rank == 2 * int(os.environ["NODE"]) + local_rank
            assert os.environ["NCCL_IB_DISABLE"] == "1"
            join()
        """,
        workers=4,
        nodes=2,
    ),
    Recipe(
        # NVIDIA/Megatron-LM: examples/mixtral/train_mixtral_8x7b_distributed.sh, in a container of a SLURM job
        "megatron-slurm",
        """
            export RANK=$NODE MASTER_ADDR=127.0.0.1 MASTER_PORT=$PORT
            SLURM_NNODES=2
            GPUS_PER_NODE=1
            MASTER_ADDR=${MASTER_ADDR:-"localhost"}
            MASTER_PORT=${MASTER_PORT:-"6000"}
            NNODES=${SLURM_NNODES:-"1"}
            NODE_RANK=${RANK:-"0"}
            WORLD_SIZE=$(($GPUS_PER_NODE*$NNODES))
            DISTRIBUTED_ARGS=(
                --nproc_per_node $GPUS_PER_NODE
                --nnodes $NNODES
                --node_rank $NODE_RANK
                --master_addr $MASTER_ADDR
                --master_port $MASTER_PORT
            )
            minetorch-launch ${DISTRIBUTED_ARGS[@]} pretrain_gpt.py --mock-data --expert-model-parallel-size 2
        """,
        """
            assert rank == int(os.environ["NODE"])
            join(world_size=world, rank=rank)
            expert_parallel = dist.new_group([0, 1])
            dist.barrier(group=expert_parallel)
        """,
        "pretrain_gpt.py",
        nodes=2,
    ),
    Recipe(
        # aws/sagemaker-training-toolkit: src/sagemaker_training/torch_distributed.py; the host's name is algo-1 there
        "sagemaker",
        """
            export SM_HOSTS='["algo-1","algo-2"]' SM_CURRENT_HOST=algo-$((NODE + 1))
            export FI_PROVIDER=efa NCCL_SOCKET_IFNAME=lo
            minetorch-launch --nnodes 2 --nproc_per_node 1 --master_addr localhost --master_port $PORT \
                --node_rank $NODE train.py --epochs 1 --model-dir /opt/ml/model
        """,
        """
            import json

            hosts = json.loads(os.environ["SM_HOSTS"])
            assert rank == hosts.index(os.environ["SM_CURRENT_HOST"])
            assert sys.argv[1:] == ["--epochs", "1", "--model-dir", "/opt/ml/model"]
            join()
        """,
        nodes=2,
    ),
    Recipe(
        # kubeflow/training-operator: pkg/controller.v1/pytorch/elastic.go and envvar.go, and
        # examples/pytorch/elastic/imagenet/imagenet.yaml (there as python -m torch.distributed.run)
        "kubeflow-pytorchjob",
        """
            export PYTHONUNBUFFERED=0 MASTER_PORT=$PORT MASTER_ADDR=localhost WORLD_SIZE=2 RANK=$NODE LOGLEVEL=DEBUG
            export PET_RDZV_ENDPOINT=localhost:$PORT PET_RDZV_BACKEND=c10d PET_NNODES=1:2 PET_MAX_RESTARTS=100
            export PET_NPROC_PER_NODE=2 PET_RDZV_ID=job PET_RDZV_CONF=last_call_timeout=30
            minetorch-launch imagenet.py --arch=resnet18 --epochs=1 --batch-size=32 /workspace/data/tiny-imagenet-200
        """,
        """
            assert world == 4 and os.environ["TORCHELASTIC_RUN_ID"] == "job"
            assert os.environ["TORCHELASTIC_MAX_RESTARTS"] == "100"
            join()
        """,
        "imagenet.py",
        workers=4,
        nodes=2,
    ),
    Recipe(
        # kubeflow/trainer: pkg/runtime/framework/plugins/torch/torch.go
        "kubeflow-trainjob",
        """
            export PET_NNODES=2 PET_NPROC_PER_NODE=1 PET_NODE_RANK=$NODE PET_MASTER_ADDR=localhost PET_MASTER_PORT=$PORT
            minetorch-launch train.py
        """,
        """
            assert rank == int(os.environ["NODE"]) == int(os.environ["GROUP_RANK"])
            join()
        """,
        nodes=2,
    ),
    Recipe(
        # huggingface/accelerate: examples/README.md
        "accelerate-two-nodes",
        """
            minetorch-launch \
                --nproc_per_node 1 \
                --nnodes 2 \
                --rdzv_id 2299 \
                --rdzv_backend c10d \
                --rdzv_endpoint 127.0.0.1:$PORT \
                ./nlp_example.py
        """,
        """
            from accelerate import Accelerator

            accelerator = Accelerator(cpu=True)
            assert (accelerator.num_processes, accelerator.process_index) == (world, rank)
            assert accelerator.is_local_main_process
            assert accelerator.reduce(torch.ones(1)).item() == world
        """,
        "nlp_example.py",
        nodes=2,
    ),
    Recipe(
        # Lightning-AI/pytorch-lightning: docs/source-pytorch/clouds/cluster_intermediate_2.rst, and
        # TorchElasticEnvironment in src/lightning/fabric/plugins/environments/torchelastic.py
        "lightning",
        """
            minetorch-launch --nproc_per_node=2 --nnodes=2 --node_rank $NODE --master_addr 127.0.0.1 \
                --master_port $PORT train.py --arg1 --arg2
        """,
        """
            assert dist.is_available() and dist.is_torchelastic_launched()
            assert os.environ["MASTER_ADDR"] and int(os.environ["MASTER_PORT"])
            assert int(os.environ["GROUP_RANK"]) == int(os.environ["NODE"])
            assert 2 * 2 == world
            join()
        """,
        workers=4,
        nodes=2,
    ),
    Recipe(
        # hiyouga/LLaMA-Factory: src/llamafactory/cli.py, with its NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT
        "llama-factory",
        """
            export FORCE_TORCHRUN=1 NNODES=2 NODE_RANK=$NODE NPROC_PER_NODE=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=$PORT
            minetorch-launch --nnodes $NNODES --node_rank $NODE_RANK --nproc_per_node $NPROC_PER_NODE \
                --master_addr $MASTER_ADDR --master_port $MASTER_PORT src/llamafactory/launcher.py train.yaml
        """,
        """
            assert os.environ["NODE_RANK"] == os.environ["GROUP_RANK"] == str(rank)
            join()
        """,
        "src/llamafactory/launcher.py",
        nodes=2,
    ),
    Recipe(
        # apache/spark: TorchDistributor in python/pyspark/ml/torch/distributor.py
        "spark",
        """
            export MASTER_ADDR=127.0.0.1 MASTER_PORT=$PORT WORLD_SIZE=2 NODE_RANK=$NODE RANK=$NODE
            minetorch-launch --nnodes=2 --node_rank=$RANK --rdzv_endpoint=$MASTER_ADDR:$MASTER_PORT --rdzv_id=0 \
                --nproc_per_node=1 train.py
        """,
        """
            assert rank == int(os.environ["NODE"])
            join()
        """,
        nodes=2,
    ),
    Recipe(
        # axolotl-ai-cloud/axolotl: docs/multi-node.qmd
        "axolotl",
        """
            export NCCL_IB_DISABLE=0 NCCL_SOCKET_IFNAME="eth0,en,eth,em,bond" NCCL_BUFFSIZE=2097152
            num_nodes=2 gpu_per_node=1 rdzv_id=axolotl head_node_ip=127.0.0.1 head_node_port=$PORT
            minetorch-launch --nnodes $num_nodes --nproc_per_node $gpu_per_node --rdzv_id $rdzv_id --rdzv_backend c10d \
                --rdzv_endpoint "$head_node_ip:$head_node_port" -m axolotl.cli.train config.yaml
        """,
        """
            assert sys.argv[1:] == ["config.yaml"]
            join()
        """,
        "axolotl/cli/train.py",
        nodes=2,
    ),
]


@pytest.fixture
def shell(launches):
    """Runs a line in a shell, once for each node; gives what each of the shells wrote and how it ended."""
    programs = {"minetorch-launch": f'#!/bin/sh\nexec "{sys.executable}" -m minetorch_launch "$@"\n'}
    programs |= {"python": f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', "srun": SRUN, "scontrol": SCONTROL}
    for name, text in programs.items():
        launches.script(text, f"bin/{name}").chmod(0o755)

    def shell(line, nodes=1):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        env = {"PORT": str(port), "CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(launches.folder)}
        env["PATH"] = f"{launches.folder}/bin:/usr/local/bin:/usr/bin:/bin"
        env |= SLURM_JOB if "srun " in line else {}
        command = ("bash", "-ec", textwrap.dedent(line))
        started = [launches.start(command=command, env={**env, "NODE": str(node)}) for node in range(nodes)]
        return [(*process.communicate(timeout=60), process.returncode) for process in started]

    return shell


def write_worker(launches, text, file):
    launches.script(textwrap.dedent(COMMON) + textwrap.dedent(text) + "\ndone()\n", file)


@pytest.mark.parametrize("recipe", [recipe.param() for recipe in RECIPES])
def test_a_recipe_runs_as_under_torchrun(launches, shell, recipe):
    write_worker(launches, recipe.worker, recipe.file)
    ends = shell(recipe.line, recipe.nodes)
    assert [code for _, _, code in ends] == [0] * recipe.nodes, ends
    done = sorted(path.name for path in launches.folder.glob("done.*"))
    assert done == [f"done.{rank}" for rank in range(recipe.workers)], ends
    assert not [err for _, err, _ in ends if "minetorch-launch:" in err], ends


def test_torchtitan_shows_one_rank_and_keeps_the_lines_of_all(launches, shell):
    """pytorch/torchtitan: run_train.sh"""
    worker = """
        assert os.environ["ROLE_NAME"] == "rank"
        assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
        join()
        print(f"step 1 of rank {rank}")
        print(f"warning of rank {rank}", file=sys.stderr)
    """
    write_worker(launches, worker, "torchtitan/train.py")
    line = """
        NGPU=2
        export LOG_RANK=${LOG_RANK:-0}
        PYTORCH_ALLOC_CONF="expandable_segments:True" \\
        TORCHFT_LIGHTHOUSE="http://localhost:29510" \\
        minetorch-launch --nproc_per_node=${NGPU} --rdzv_backend c10d --rdzv_endpoint="localhost:0" \\
        --local-ranks-filter ${LOG_RANK} --role rank --tee 3 \\
        -m torchtitan.train --module llama3 --config llama3_debugmodel
    """
    [(out, err, code)] = shell(line)
    assert code == 0, err
    assert launches.by_rank(out) == {0: ["step 1 of rank 0"]}
    assert "warning of rank 0" in err
    assert "rank 1" not in err
    logs = sorted(launches.folder.glob("*/rank_*.log"))
    assert [re.findall(r"(step 1|warning) of rank (\d)", log.read_text()) for log in logs] == [
        [("step 1", str(rank)), ("warning", str(rank))] for rank in (0, 1)
    ]


def test_the_fault_tolerant_job_of_torchruns_quickstart_goes_on_from_its_snapshot(launches, shell):
    """docs.pytorch.org/docs/stable/elastic/quickstart.html, and multigpu_torchrun.py of pytorch/examples"""
    worker = """
        join()
        start = torch.load("snapshot.pt")["EPOCHS_RUN"] if os.path.exists("snapshot.pt") else 0
        for epoch in range(start, 4):
            dist.barrier()
            if local_rank == 0:
                torch.save({"EPOCHS_RUN": epoch + 1}, "snapshot.pt")
            dist.barrier()
            if epoch == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and rank == 1:
                raise RuntimeError("a fault")
        assert (start, os.environ["TORCHELASTIC_RESTART_COUNT"]) == (2, "1")
    """
    write_worker(launches, worker, "train.py")
    line = """
        minetorch-launch --nnodes=1 --nproc-per-node=2 --max-restarts=3 --rdzv-id=7 --rdzv-backend=c10d \\
            --rdzv-endpoint=localhost:$PORT train.py
    """
    [(_, err, code)] = shell(line)
    assert code == 0, err
    assert "restart 1 of 3" in err
    assert sorted(path.name for path in launches.folder.glob("done.*")) == ["done.0", "done.1"]
