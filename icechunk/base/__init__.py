"""What every public class is made with: its display, and the asynchronous twins of its methods."""
