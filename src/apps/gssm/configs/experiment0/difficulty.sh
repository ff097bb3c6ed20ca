#!/bin/bash
# Experiment 0: how hard are the sequences of the seed graph over a grid of (alpha_X, alpha_Z)? A few minutes on one core.
#
#   bash src/apps/gssm/configs/experiment0/difficulty.sh [key=value ..]
#   sbatch src/apps/gssm/configs/experiment0/difficulty.sh [key=value ..]       from the project's root
#
# Arguments go to src.apps.gssm.difficulty, which prints a table and writes difficulty.json and difficulty.html (heat maps) in its run folder.
# For the concentrations that meet a target exactly: python -m src.apps.gssm.calibrate.
#SBATCH --job-name=gssm-difficulty
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=01:00:00
set -eu

# sbatch runs a copy of this file from elsewhere, but in the folder it was called from
if [ -n "${SLURM_JOB_ID:-}" ]; then
  cd "$SLURM_SUBMIT_DIR"
else
  cd "$(dirname "${BASH_SOURCE[0]}")/../../../../.."
fi

python=python
[ -x .venv/bin/python ] && python=.venv/bin/python
exec "$python" -m src.apps.gssm.difficulty src/apps/gssm/configs/experiment0/difficulty.yaml "$@"
