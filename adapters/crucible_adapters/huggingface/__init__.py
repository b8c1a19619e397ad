"""What the adapters of the Hugging Face hub share: its libraries, each operation in a process of its own."""
