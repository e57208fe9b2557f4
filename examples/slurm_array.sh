#!/bin/bash
# Once: python slurm_array.py create
# Then: sbatch slurm_array.sh
# To look: python slurm_array.py status
#SBATCH --job-name=january
#SBATCH --array=0-2
#SBATCH --time=01:00:00
#SBATCH --requeue

set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
python slurm_array.py run
