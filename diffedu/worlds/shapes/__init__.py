"""The parts of ShapeWorld: outlines, random factors, words, and the painter."""
