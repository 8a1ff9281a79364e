"""How good a result is: pictures, lip movement against sound, the mouth itself."""
