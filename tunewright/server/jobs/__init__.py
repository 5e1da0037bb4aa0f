"""Fine-tuning jobs: OpenAI's request as a config, a run as a process, its records as OpenAI's job."""
