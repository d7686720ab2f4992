#!/usr/bin/env bash
# One run on a Slurm cluster: sbatch cluster/slurm.sh --preset paper --data /shared/Goodreads --name goodreads
#SBATCH --job-name=rayrec
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-task=8
#SBATCH --cpus-per-task=32
#SBATCH --exclusive
#SBATCH --time=24:00:00
# Slurm queues the job again when it is preempted or loses a node; out of time it would be over, so two minutes before
# that the trap below asks for the same. The run goes on where it was.
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --output=rayrec-%j.log
#SBATCH --open-mode=append
set -euo pipefail

: "${SHARED:=/shared}" "${VENV:=$SHARED/rayrec/.venv}" "${PORT:=6379}"
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
head_ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head_node" hostname --ip-address | awk '{print $1}')

# Whoever reaches the port without the token is sent away. It lives in a file that only this user reads.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$SHARED/.ray-token-$SLURM_JOB_ID"
# What lies there already may be somebody else's, who could read what is written into it.
rm -f "$RAY_AUTH_TOKEN_PATH"
(umask 077 && set -o noclobber && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$RAY_AUTH_TOKEN_PATH")
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT
trap 'scontrol requeue "$SLURM_JOB_ID"' USR1
# Ray starts itself by its name on every node.
export PATH="$VENV/bin:$PATH" RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

cd "$SHARED/rayrec"
# srun does not take --cpus-per-task from the job by itself.
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" ray symmetric-run \
  --address "$head_ip:$PORT" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "$SLURM_GPUS_ON_NODE" \
  -- python jobs/sprec.py --runs "$SHARED/runs" "$@" &
# A trap waits for a command in the foreground, and ends a `wait`: the second one has the job's own end.
wait $! || wait $!
