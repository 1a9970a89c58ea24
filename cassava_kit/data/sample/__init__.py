"""The embedded sample competition: drawn leaves, folder by folder as Kaggle lays them out."""
