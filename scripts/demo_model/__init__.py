"""The eyes of the demo model: drawing the pictures, training the towers, measuring, exporting."""
