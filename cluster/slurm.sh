#!/usr/bin/env bash
# One run on a Slurm cluster: sbatch cluster/slurm.sh --preset paper --data /shared/Goodreads --name goodreads
#SBATCH --job-name=rayrec
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-task=8
#SBATCH --cpus-per-task=32
#SBATCH --exclusive
#SBATCH --time=24:00:00
# Slurm queues the job again when it is preempted or loses a node. Two minutes before its time is over the trap below
# queues it again as well. The run resumes.
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --output=rayrec-%j.log
#SBATCH --open-mode=append
set -euo pipefail

: "${SHARED:=/shared}" "${VENV:=$SHARED/rayrec/.venv}" "${PORT:=6379}"
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
head_ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head_node" hostname --ip-address | awk '{print $1}')

# Ray refuses clients without the token. The token is in a file that only this user can read.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$SHARED/.ray-token-$SLURM_JOB_ID"
# A file that is there already may belong to another user, who could read the token.
rm -f "$RAY_AUTH_TOKEN_PATH"
(umask 077 && set -o noclobber && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$RAY_AUTH_TOKEN_PATH")
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT
trap 'scontrol requeue "$SLURM_JOB_ID"' USR1
# On every node Ray starts itself by its name.
export PATH="$VENV/bin:$PATH" RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

cd "$SHARED/rayrec"
# srun does not inherit --cpus-per-task from the job.
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" ray symmetric-run \
  --address "$head_ip:$PORT" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "$SLURM_GPUS_ON_NODE" \
  -- python jobs/sprec.py --runs "$SHARED/runs" "$@" &
# A trap interrupts the first `wait`; the second one returns the job's own exit status.
wait $! || wait $!
