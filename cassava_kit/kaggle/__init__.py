"""What goes to Kaggle: packed, rehearsed, sent, and examined by the doctor."""
