"""Fine-tuning of the trained methods: data, objectives, and the trainer."""
