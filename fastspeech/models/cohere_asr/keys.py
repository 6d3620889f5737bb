"""stub"""
def is_original_config(v): return "transf_decoder" in v
def translate_config(v): return v
