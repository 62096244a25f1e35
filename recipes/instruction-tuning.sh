#!/bin/sh
# Instruction tuning with copying (paper, 2.4.3 and table 4) of both case studies, after their recipes have run. One GPU of 80 GB.
# instruct/saiga.jsonl: conversations of IlyaGusev/saiga_scored with a score of 8 or more; corpora/ru/wikipedia-apart.jsonl: text
# that is in no training corpus.
set -eu
for run in llama-3-8b-extended mistral-7b-unigram; do
    for model in runs/"$run"/propagated/*; do
        lepta tune --model "$model" --data instruct/saiga.jsonl --output "runs/$run/tuned/$(basename "$model")" \
            --copy-text corpora/ru/wikipedia-apart.jsonl --copies 2000 --copy-characters 6000 --apart-from corpora/ru/train \
            --rank 32 --alpha 16 --learning-rate 5e-5 --weight-decay 0.05 --batch 128 --micro-batch 1 --max-length 4096 \
            --gradient-checkpointing
    done
done
